"""The identity of what a model ran: operators, arguments, indices, and numbers that steer."""
