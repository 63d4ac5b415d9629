"""The tests of qbench: one file a module, plus conformance, layering, packaging and golden results."""
