"""The Storage port's contract as a suite: every adapter's test subclasses StorageContract.

A subclass provides the fixture `storage` (an opened adapter), and says by the hooks how the same
store is opened anew, how bytes are lost behind its back, and how it grows old.
"""

from tests.contract.storage_examining import StorageExamining
from tests.contract.storage_listing import StorageListing
from tests.contract.storage_reading import StorageReading
from tests.contract.storage_writing import StorageWriting


class StorageContract(StorageWriting, StorageReading, StorageListing, StorageExamining):
    """What every adapter holds to, sentence by sentence of `storage/base.py`."""
