"""The built-in tasks, one file each; to qbench they are plugins like anybody's."""
