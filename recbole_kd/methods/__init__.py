"""Distillation methods: add a file ``foo.py`` with the class ``Foo``, and ``properties/method/Foo.yaml``.

The pure loss comes first in the file, the class that feeds it below.
"""
