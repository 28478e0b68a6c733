"""The procedures, a module per family; each ends in its `ROWS`."""
