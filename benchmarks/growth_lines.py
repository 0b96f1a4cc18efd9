"""What the records of `growth` call their lines, for whoever reads them without jax or torch."""

LINES = ('layer', 'torch layer', 'model')
FLAT = 'experts'  # the axis along which a token's experts have no more to do
OVER = 'over proportional'
