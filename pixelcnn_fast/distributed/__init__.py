"""Jobs of many images over many processes: ``sample`` shares them out, and goes on where a job was stopped."""

from pixelcnn_fast.distributed.job import SHARD_SIZE, sample

__all__ = ["SHARD_SIZE", "sample"]
