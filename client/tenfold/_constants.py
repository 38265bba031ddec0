"""Every bound of the client, with its reason. None of them is meant to be changed by a caller.

What a caller may choose (`timeout_s`, `max_retries`, `wait_s`) has its default here too.
"""

BASE_URL = "http://127.0.0.1:8080"  # where `make up` listens

# One attempt
TIMEOUT_S = 30.0  # longest silence of the server that is taken for work
CONNECT_TIMEOUT_S = 5.0  # a host that answers at all does so within a few round trips
ANSWER_LIMIT_BYTES = 64 * 2**20  # a JSON answer beyond this is not one of ours
PROBLEM_LIMIT_BYTES = 2**20

# Retries
MAX_RETRIES = 2
MAX_RETRIES_LIMIT = 10
BACKOFF_BASE_S = 0.5  # the first pause is drawn from 0..0.5 s, the next from 0..1 s, and so on
BACKOFF_CAP_S = 8.0
RETRY_AFTER_LIMIT_S = 60.0  # a server that asks for more is not waited for: the caller decides
RETRY_AFTER_SPREAD = 0.25  # callers told to come back in 4 s come back within 4..5 s, not all at once

# Waiting for a job
WAIT_S = 300.0
STREAM_WAIT_S = 25 * 3600.0  # a training may take a day
PREFER_WAIT_S = 20.0  # longest that one request is held; proxies cut idle connections at 30 s or 60 s
EVENTS_SILENCE_S = 45.0  # the server sends a sign of life every 15 s
EVENTS_FAILURES = 3  # event streams in a row that bring nothing, before the job's record is polled instead
EVENT_LIMIT_BYTES = 2**20
POLL_FIRST_S = 0.25
POLL_GROWTH = 1.5
POLL_CAP_S = 5.0

# Files
CHUNK_BYTES = 64 * 2**10
PAGE_SIZE = 100
