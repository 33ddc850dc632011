"""Jobs of many images over many processes, which go on where they were stopped."""

from pixelcnn_fast.distributed.job import SHARD_SIZE, sample

__all__ = ["SHARD_SIZE", "sample"]
