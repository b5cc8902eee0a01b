"""The process, its signals and its temporary folders, and what it needs of its machine."""
