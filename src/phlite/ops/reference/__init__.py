"""The definition of every native operation in NumPy, written for clarity; tests compare the native code with it."""
