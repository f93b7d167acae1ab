"""The `edge` command, with accelerate made to believe that it may shard over CPUs.

accelerate shards (FSDP2) over GPUs alone; torch itself also does over CPUs. This lets a test run
the very loop that shards, where there is no GPU.
"""

import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_anywhere() -> None:
    ordinary = AcceleratorState.__init__

    def with_sharding(self, *arguments, fsdp_plugin=None, **named):
        ordinary(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = with_sharding


if __name__ == "__main__":
    shard_anywhere()
    from edge.cli.main import main

    sys.exit(main())
