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
    -- What waits beside it makes way. The next operation of ours finds it delayed and due, ends it, and frees its key.
    UPDATE tidegate_jobs SET state = 1, due = 0, superseded_by = (SELECT job FROM tidegate_enqueued)
        WHERE (SELECT answer FROM tidegate_enqueued) = 'replaced' AND id IN (
            SELECT job FROM tidegate_unique_keys WHERE kind = NEW.kind AND key = NEW.unique_key
                AND job <> (SELECT job FROM tidegate_enqueued)
        );

    UPDATE tidegate_counters SET seq = seq + 1 WHERE (SELECT job FROM tidegate_enqueued) IS NULL;
    UPDATE tidegate_enqueued SET answer = 'created', job = (SELECT seq FROM tidegate_counters) WHERE job IS NULL;
    UPDATE tidegate_counters SET seq = seq + 1
        WHERE NEW.unique_key IS NOT NULL AND NEW.unique_window IS NOT 0
            AND (SELECT answer FROM tidegate_enqueued) = 'created';
    -- What is with a worker does not come back from there.
    UPDATE tidegate_jobs SET superseded_by = (SELECT job FROM tidegate_enqueued)
        WHERE state = 2 AND kind = NEW.kind AND unique_key = NEW.unique_key AND NEW.on_clash = 'replace_payload'
            AND (SELECT answer FROM tidegate_enqueued) <> 'duplicate';
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
