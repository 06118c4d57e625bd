"""Where bytes rest: the Storage port (`base`) and its adapters."""
