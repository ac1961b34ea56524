"""A run's journal as a cassette: what was recorded answers instead of engines and sandboxes."""

from sandbox_rl.cassette.cassette import Cassette, recordings
from sandbox_rl.cassette.sandboxes import RecordedBackend, RecordedSettings

__all__ = ["Cassette", "RecordedBackend", "RecordedSettings", "recordings"]
