"""Data sets by name, augmentation and batches. Knows nothing of networks."""

from spikerate.data.augment import LARGEST_SIDE, Augment
from spikerate.data.batches import Part, epoch_batches, plain_batches, steps_per_epoch
from spikerate.data.cache import keeps_caches
from spikerate.data.catalogue import SETS, check, check_crop, entry_of, input_shape, load
from spikerate.data.download import SOURCES, fetch
from spikerate.data.resize import resized
from spikerate.data.sample_files import read_sample, sample_files
from spikerate.data.samples import Block, DataReader, DataSet, Samples, Stored, Units
from spikerate.data.settings import Data
from spikerate.data.streams import Stream, stream
from spikerate.data.views import Views

__all__ = [
    "LARGEST_SIDE",
    "SETS",
    "SOURCES",
    "Augment",
    "Block",
    "Data",
    "DataReader",
    "DataSet",
    "Part",
    "Samples",
    "Stored",
    "Stream",
    "Units",
    "Views",
    "check",
    "check_crop",
    "entry_of",
    "epoch_batches",
    "fetch",
    "input_shape",
    "keeps_caches",
    "load",
    "plain_batches",
    "read_sample",
    "resized",
    "sample_files",
    "steps_per_epoch",
    "stream",
]
