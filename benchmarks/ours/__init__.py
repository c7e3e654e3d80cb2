"""Our own cells, each a fresh process like those of the peers."""
