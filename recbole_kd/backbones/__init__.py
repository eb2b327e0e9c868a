"""Models of ours: one class ``Foo`` a file ``foo.py``. RecBole's own need no file here."""
