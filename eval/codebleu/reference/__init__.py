"""Mode ``reference``: the numbers of the published metric."""
