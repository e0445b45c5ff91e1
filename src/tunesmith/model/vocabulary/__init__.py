"""A vocabulary that grows: new pieces are learnt or merged in, get rows in the matrices, and everything is checked together."""
