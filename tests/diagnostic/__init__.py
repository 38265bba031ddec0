"""A method that computes nothing of use: it proves the job runtime. It is not shipped."""
