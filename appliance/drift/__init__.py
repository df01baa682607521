"""How far what a version gets, and answers, is from what it was made for: pure arithmetic.

Owns: the statistics (``statistics``), sketches of columns (``sketch``), the tables in bodies and
replies (``bodies``), and the judgement (``scores``).
Never: does I/O, keeps a value it saw, or knows versions and tenants.
Read next: ``appliance.watch`` (collects and judges), ``store.sketches`` (keeps).
"""
