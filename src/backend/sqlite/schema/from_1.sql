-- What was in a file of version 1, whose names had no prefix, goes into the tables of now: later versions only add to them.
UPDATE tidegate_counters SET (seq, done, dropped_dead) = (SELECT seq, done, dropped_dead FROM counters);
UPDATE tidegate_counters SET dead = (SELECT count(*) FROM jobs WHERE state = 3);
INSERT INTO tidegate_jobs (id, state, queue, kind, rank, ord, due, entered, since, enqueued_at, max_attempts, timeout,
        attempts, lapses, token, cancelled, unique_key, window, last_error, payload)
    SELECT id, state, queue, kind, rank, ord, due, entered, since, enqueued_at, max_attempts, timeout,
        attempts, lapses, token, cancelled, unique_key, window, last_error, payload FROM jobs;
INSERT INTO tidegate_unique_keys (kind, key, seq, job, until) SELECT kind, key, seq, job, until FROM unique_keys;
DROP TABLE counters;
DROP TABLE jobs;
DROP TABLE unique_keys;
