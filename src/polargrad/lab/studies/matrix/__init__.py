"""The matrix experiments: runs of a problem under every optimizer, with a page."""
