"""Distillation methods: one class ``Foo`` a file ``foo.py``, and ``properties/method/Foo.yaml``.

The pure loss comes first in the file, the class that feeds it below.
"""
