"""The built-in methods, one file each; to qbench they are plugins like anybody's."""
