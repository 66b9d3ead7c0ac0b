-- What the second version made of a new file: kept as it was.
-- The tables of version 2, which a new file gets at once. All names have a prefix, so that the file may hold its user's
-- own tables beside ours.
--
-- States are numbers: 0 ready, 1 delayed, 2 with a worker, 3 dead, 4 done. Times are nanoseconds since 1970. `rank` is
-- the negative priority, so that every index runs upwards. What `due` means depends on the state: when a delayed job
-- becomes ready, when a lease runs out, when one that is done is deleted.
CREATE TABLE tidegate_meta (version INTEGER NOT NULL, max_payload INTEGER NOT NULL) STRICT;
INSERT INTO tidegate_meta VALUES (2, 16777216);
CREATE TABLE tidegate_counters (
    seq INTEGER NOT NULL,
    done INTEGER NOT NULL,
    dropped_dead INTEGER NOT NULL,
    -- How many there are now: dead, and done and kept.
    dead INTEGER NOT NULL,
    kept INTEGER NOT NULL
) STRICT;
INSERT INTO tidegate_counters VALUES (0, 0, 0, 0, 0);
CREATE TABLE tidegate_jobs (
    id INTEGER PRIMARY KEY,
    state INTEGER NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    rank INTEGER NOT NULL,
    ord INTEGER NOT NULL,
    due INTEGER NOT NULL,
    entered INTEGER NOT NULL,
    since INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    max_attempts INTEGER,
    timeout INTEGER,
    attempts INTEGER NOT NULL,
    lapses INTEGER NOT NULL,
    token INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    unique_key TEXT,
    window INTEGER,
    last_error TEXT,
    -- How many attempts have ended and were written down; most jobs are done in their first and gone with it.
    history INTEGER NOT NULL DEFAULT 0,
    -- When it was completed by INSERT INTO tidegate_complete; from then on it is done, whatever its worker says.
    completed INTEGER,
    -- Last: what stands behind a long one is slow to read.
    payload BLOB NOT NULL
) STRICT;
CREATE INDEX tidegate_jobs_ready ON tidegate_jobs (queue, kind, rank, ord) WHERE state = 0;
CREATE INDEX tidegate_jobs_delayed ON tidegate_jobs (due, ord) WHERE state = 1;
CREATE INDEX tidegate_jobs_leased ON tidegate_jobs (due, id) WHERE state = 2;
CREATE INDEX tidegate_jobs_dead ON tidegate_jobs (entered) WHERE state = 3;
CREATE INDEX tidegate_jobs_done ON tidegate_jobs (due, id) WHERE state = 4;
CREATE TABLE tidegate_unique_keys (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    seq INTEGER NOT NULL,
    job INTEGER NOT NULL,
    until INTEGER,
    PRIMARY KEY (kind, key, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX tidegate_unique_keys_until ON tidegate_unique_keys (until) WHERE until IS NOT NULL;
-- The attempts that have ended: 0 done, 1 retried, 2 rejected, 3 released, 4 lapsed.
CREATE TABLE tidegate_attempts (
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    came_to INTEGER NOT NULL,
    error TEXT,
    output BLOB,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
-- What a program that has a queue to itself wants to be committed together with its jobs.
CREATE TABLE tidegate_notes (name TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID;
-- The doors for other programs: what any connection to the file can do within a transaction of its own. The module's
-- documentation says how they are used. No function here is younger than SQLite 3.35, though STRICT tables need 3.37.

-- The system's clock, in the store's unit; it shows the same time all through a statement.
CREATE VIEW tidegate_clock (now) AS
    SELECT (CAST(strftime('%s', 'now') AS INTEGER) * 1000 + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER)) * 1000000;

-- What became of the last INSERT INTO tidegate_enqueue: 'created', 'duplicate' or 'replaced', and the job that stands
-- for it. Whoever writes has the file alone, so within a transaction it is one's own.
CREATE TABLE tidegate_enqueued (job INTEGER, answer TEXT) STRICT;
INSERT INTO tidegate_enqueued VALUES (NULL, NULL);

CREATE VIEW tidegate_enqueue
    (kind, payload, queue, priority, run_at, max_attempts, timeout_ms, unique_key, unique_window, on_clash) AS
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE 0;

-- The same as Txn::admit, step by step, so that both leave the same rows behind.
CREATE TRIGGER tidegate_enqueue_insert INSTEAD OF INSERT ON tidegate_enqueue
BEGIN
    SELECT RAISE(ABORT, 'tidegate: kind must be a text that names the handler which is to run the job')
        WHERE typeof(NEW.kind) <> 'text' OR NEW.kind = '';
    SELECT RAISE(ABORT, 'tidegate: queue must be a text that is not empty; left out it is ''default''')
        WHERE typeof(NEW.queue) NOT IN ('text', 'null') OR NEW.queue = '';
    SELECT RAISE(ABORT, 'tidegate: unique_key must be a text that is not empty, or left out')
        WHERE typeof(NEW.unique_key) NOT IN ('text', 'null') OR NEW.unique_key = '';
    SELECT RAISE(ABORT, 'tidegate: kind, queue and unique_key must be UTF-8 without zero characters, and at most 4096 bytes if they are not ASCII')
        WHERE EXISTS (
            WITH RECURSIVE
                names (name) AS (SELECT NEW.kind UNION ALL SELECT NEW.queue UNION ALL SELECT NEW.unique_key),
                -- A text that is no UTF-8 is one with a character that is not written as it would be.
                rest (text) AS (
                    SELECT name FROM names
                        WHERE name GLOB '*[^' || char(1) || '-' || char(127) || ']*'
                            AND length(CAST(name AS BLOB)) <= 4096
                    UNION ALL
                    SELECT substr(text, 2) FROM rest WHERE length(text) > 1
                )
            SELECT 1 FROM names
                WHERE instr(CAST(name AS BLOB), x'00') > 0
                    OR length(CAST(name AS BLOB)) > 4096 AND name GLOB '*[^' || char(1) || '-' || char(127) || ']*'
            UNION ALL
            SELECT 1 FROM rest WHERE substr(text, 1, 1) <> char(unicode(text))
        );
    SELECT RAISE(ABORT, 'tidegate: payload must be a blob or a text')
        WHERE typeof(NEW.payload) NOT IN ('blob', 'text', 'null');
    SELECT RAISE(ABORT, 'tidegate: payload is larger than max_payload_bytes of who set it last')
        WHERE length(CAST(NEW.payload AS BLOB)) > (SELECT max_payload FROM tidegate_meta);
    SELECT RAISE(ABORT, 'tidegate: priority must be a whole number from -32768 to 32767')
        WHERE NEW.priority IS NOT NULL
            AND (typeof(NEW.priority) <> 'integer' OR NEW.priority NOT BETWEEN -32768 AND 32767);
    SELECT RAISE(ABORT, 'tidegate: run_at must be a number: seconds since 1970')
        WHERE typeof(NEW.run_at) NOT IN ('integer', 'real', 'null');
    SELECT RAISE(ABORT, 'tidegate: max_attempts must be a whole number from 1 to 4294967295')
        WHERE NEW.max_attempts IS NOT NULL
            AND (typeof(NEW.max_attempts) <> 'integer' OR NEW.max_attempts NOT BETWEEN 1 AND 4294967295);
    SELECT RAISE(ABORT, 'tidegate: timeout_ms must be a whole number of milliseconds, not below 0')
        WHERE NEW.timeout_ms IS NOT NULL AND (typeof(NEW.timeout_ms) <> 'integer' OR NEW.timeout_ms < 0);
    SELECT RAISE(ABORT, 'tidegate: unique_window must be ''while_queued'', ''until_done'' or a whole number of milliseconds')
        WHERE NEW.unique_window IS NOT NULL AND NEW.unique_window NOT IN ('while_queued', 'until_done')
            AND (typeof(NEW.unique_window) <> 'integer' OR NEW.unique_window < 0);
    SELECT RAISE(ABORT, 'tidegate: on_clash must be ''keep_first'' or ''replace_payload''')
        WHERE NEW.on_clash IS NOT NULL AND NEW.on_clash NOT IN ('keep_first', 'replace_payload');
    SELECT RAISE(ABORT, 'tidegate: unique_window and on_clash need a unique_key')
        WHERE NEW.unique_key IS NULL AND (NEW.unique_window IS NOT NULL OR NEW.on_clash IS NOT NULL);

    -- Whoever holds the key stands for it.
    DELETE FROM tidegate_unique_keys
        WHERE NEW.unique_key IS NOT NULL AND until <= (SELECT now FROM tidegate_clock);
    UPDATE tidegate_enqueued SET answer = 'duplicate', job = (
        SELECT job FROM tidegate_unique_keys WHERE kind = NEW.kind AND key = NEW.unique_key ORDER BY seq LIMIT 1
    );
    UPDATE tidegate_enqueued SET answer = 'replaced'
        WHERE NEW.on_clash = 'replace_payload'
            AND (SELECT state FROM tidegate_jobs WHERE id = tidegate_enqueued.job) IN (0, 1);
    UPDATE tidegate_jobs SET payload = coalesce(CAST(NEW.payload AS BLOB), x'')
        WHERE id = (SELECT job FROM tidegate_enqueued WHERE answer = 'replaced');

    UPDATE tidegate_counters SET seq = seq + 1 WHERE (SELECT job FROM tidegate_enqueued) IS NULL;
    UPDATE tidegate_enqueued SET answer = 'created', job = (SELECT seq FROM tidegate_counters) WHERE job IS NULL;
    UPDATE tidegate_counters SET seq = seq + 1
        WHERE NEW.unique_key IS NOT NULL AND NEW.unique_window IS NOT 0
            AND (SELECT answer FROM tidegate_enqueued) = 'created';
    INSERT INTO tidegate_unique_keys (kind, key, seq, job, until)
        SELECT NEW.kind, NEW.unique_key, seq, job,
            CASE WHEN typeof(NEW.unique_window) = 'integer' THEN
                -- What is longer than 292 years is as good as never: a number that is too large is cut to the largest.
                CAST(now + CAST(NEW.unique_window * 1000000 AS INTEGER) AS INTEGER)
            END
        FROM tidegate_enqueued, tidegate_counters, tidegate_clock
        WHERE NEW.unique_key IS NOT NULL AND NEW.unique_window IS NOT 0 AND answer = 'created';
    INSERT INTO tidegate_jobs (id, state, queue, kind, rank, ord, due, entered, since, enqueued_at, max_attempts,
            timeout, attempts, lapses, token, cancelled, unique_key, window, payload)
        SELECT job, at > now, coalesce(NEW.queue, 'default'), NEW.kind, -coalesce(NEW.priority, 0), job,
            CASE WHEN at > now THEN at ELSE 0 END, job, now, now, NEW.max_attempts,
            CAST(NEW.timeout_ms * 1000000 AS INTEGER), 0, 0, 0, 0, NEW.unique_key,
            CASE
                WHEN NEW.unique_key IS NULL THEN NULL
                WHEN NEW.unique_window = 'until_done' THEN 1
                WHEN typeof(NEW.unique_window) = 'integer' THEN 2
                ELSE 0
            END,
            coalesce(CAST(NEW.payload AS BLOB), x'')
        FROM tidegate_enqueued,
            (SELECT now, coalesce(CAST(NEW.run_at * 1000000000 AS INTEGER), 0) AS at FROM tidegate_clock)
        WHERE answer = 'created';
END;

-- The jobs that are completed, but whose workers have not said so yet.
CREATE VIEW tidegate_complete (job, token) AS
    SELECT id, token FROM tidegate_jobs WHERE state = 2 AND completed IS NOT NULL;

-- ROLLBACK and not ABORT: what the job did in this transaction must not be committed without this, even by a program
-- that passes over the error.
CREATE TRIGGER tidegate_complete_insert INSTEAD OF INSERT ON tidegate_complete
BEGIN
    SELECT RAISE(ROLLBACK, 'tidegate: this attempt is completed already; the transaction was rolled back')
        WHERE EXISTS (
            SELECT 1 FROM tidegate_jobs WHERE id = NEW.job AND token = NEW.token AND completed IS NOT NULL
        );
    SELECT RAISE(ROLLBACK, 'tidegate: this job is not with this worker any more: its lease ran out, or it was settled; the transaction was rolled back')
        WHERE NOT EXISTS (
            SELECT 1 FROM tidegate_jobs, tidegate_clock
                WHERE id = NEW.job AND state = 2 AND token = NEW.token AND due > now
        );
    DELETE FROM tidegate_unique_keys
        WHERE job = NEW.job AND until IS NULL
            AND (kind, key) = (SELECT kind, unique_key FROM tidegate_jobs WHERE id = NEW.job);
    UPDATE tidegate_jobs SET completed = (SELECT now FROM tidegate_clock), cancelled = 0 WHERE id = NEW.job;
END;
