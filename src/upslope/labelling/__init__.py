"""A labelling project: people answer on a page, a model ranks what is asked next.

`settings` says what a project is, `state` and `project` hold the answers, `queue` says which sample
comes next. `learner` and `features` rank, in a process of their own (`trainer`,
`training_process`). `server`, `session` and `page/` are what people see. `exports` and `imports`
carry labels out and in.
"""
