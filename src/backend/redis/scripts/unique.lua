-- What other scripts begin with: the unique keys of jobs that our own producer made.
--
-- The last of the KEYS of each is what all of our own keys begin with, `tidegate:` behind the prefix.
-- For each key there is a hash `tidegate:unique:<length of the kind>:<kind>:<key>`: by the job's id how the job stands to
-- the key. A state (w waits, r runs, s runs and is superseded, g gone), a window (q while queued, d until done, p for a
-- period), until when the period lasts (ms), the order in which keys were taken, when it was last seen to stand where it
-- waits (ms); then for one that waits what stands in its queue or set, for one that runs its token, and if it is
-- superseded by whom.
local OURS = KEYS[#KEYS]
local UNIQUE, MARK, CHECK_AFTER = OURS .. 'unique:', '{"tidegate":{', 60000
local unique_time = redis.call('TIME')
local unique_now = tonumber(unique_time[1]) * 1000 + math.floor(tonumber(unique_time[2]) / 1000)

-- The name of the key's hash, the job's id, and its queue; nothing for a job without a key.
local function unique_of(raw)
    if string.sub(raw, 1, #MARK) ~= MARK then return end
    local read, job = pcall(cjson.decode, raw)
    if not read or type(job.tidegate) ~= 'table' or type(job.tidegate.unique) ~= 'table' then return end
    local kind, key, id = job.class, job.tidegate.unique.key, job.jid
    if type(kind) ~= 'string' or type(key) ~= 'string' or type(id) ~= 'string' then return end
    return UNIQUE .. #kind .. ':' .. kind .. ':' .. key, id, job.queue
end

local function entry_in(value)
    if not value then return end
    local state, window, until_when, order, checked, from = string.match(value, '^(%l)(%l)(%d+);(%d+);(%d+);()')
    if not state then return end
    local rest = string.sub(value, from)
    return { state = state, window = window, until_when = tonumber(until_when), order = tonumber(order),
        checked = tonumber(checked), rest = rest }
end
local function put_entry(key, id, entry)
    local head = string.format('%s%s%.0f;%.0f;%.0f;', entry.state, entry.window, entry.until_when, entry.order, entry.checked)
    redis.call('HSET', key, id, head .. entry.rest)
end
local function next_order() return redis.call('INCR', OURS .. 'order') end

-- A hash with nothing but periods that go on goes with the last of them.
local function tidy(key)
    local last = 0
    local there = redis.call('HGETALL', key)
    for i = 2, #there, 2 do
        local entry = entry_in(there[i])
        if entry and entry.state ~= 'g' then
            redis.call('PERSIST', key)
            return
        end
        if entry and entry.until_when > last then last = entry.until_when end
    end
    if #there > 0 then redis.call('PEXPIREAT', key, string.format('%.0f', last)) end
end

local function in_period(entry) return entry.window == 'p' and entry.until_when > unique_now end

-- The job is in the hands of a worker.
local function unique_taken(raw, token)
    local key, id = unique_of(raw)
    local entry = key and entry_in(redis.call('HGET', key, id))
    if entry then
        entry.state, entry.rest = 'r', token
        put_entry(key, id, entry)
    end
end

-- The job has ended.
local function unique_ended(raw)
    local key, id = unique_of(raw)
    local entry = key and entry_in(redis.call('HGET', key, id))
    if not entry then return end
    if in_period(entry) then
        entry.state, entry.rest = 'g', ''
        put_entry(key, id, entry)
    else
        redis.call('HDEL', key, id)
    end
    tidy(key)
end

-- The job is to wait again, as `after`. Answers whether it has been superseded; then it has ended.
local function unique_back(raw, after)
    local key, id = unique_of(raw)
    local entry = key and entry_in(redis.call('HGET', key, id))
    if not entry then return false end
    if entry.state == 's' then
        redis.call('HDEL', key, id)
        tidy(key)
        redis.call('INCR', OURS .. 'superseded')
        return true
    end
    if entry.window == 'q' and entry.state ~= 'w' then entry.order = next_order() end
    entry.state, entry.rest, entry.checked = 'w', after, unique_now
    put_entry(key, id, entry)
    redis.call('PERSIST', key)
    return false
end
