"""Features computed in a process of its own, for the test that kills it; not a test itself."""

import sys
from pathlib import Path

import torch
from frozen_nets import make

from upslope.frozen import freeze_dataset, take_backbone
from upslope.progress import Progress

if __name__ == "__main__":
    from test_frozen import images, task_of

    torch.set_num_threads(1)

    def watch(progress: Progress) -> None:
        print(f"{progress.done} of {progress.total}", flush=True)

    dataset = images(2_000)
    backbone = take_backbone(lambda: make(4, (1, 9, 9)), task_of(), torch.device("cpu"))
    freeze_dataset(dataset, backbone, torch.device("cpu"), Path(sys.argv[1]), watch)
