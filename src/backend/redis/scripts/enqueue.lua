-- Takes in all jobs or none.
-- KEYS: 1 queues, 2 schedule, 3 retry, 4 leases, 5 what our own keys begin with. ARGV: 1 what a queue's key begins with, 2 the command that puts
--   at the back of a queue, 3 what the key of a list begins with in which jobs wait for the same second, or nothing if they
--   wait in the schedule itself, 4 what the key of the set begins with that says where a job waits, then in the order of the jobs:
--   'queue', a queue, how many jobs, and what is to stand there of each;
--   'set', a score, and what is to stand in the schedule;
--   'unique', the window (q, d, p) and its period in ms, 'first' or 'replace', the queue, the score or nothing, what is
--       to stand there; and what a job that stands there is expected to be, and what it becomes.
-- Answers for each that is unique: 'created', or 'first' or 'replaced' and the id of the job that was there; or instead
-- of all this, if jobs are to be replaced of which it was not known what they become, 'ask' and for each its place among
-- those that are unique and what stands there now. Then nothing was changed.
local prefix, push, delayed, at, wrong = ARGV[1], ARGV[2], ARGV[3], 4, nil
local function next_arg() at = at + 1; return ARGV[at] end
local function must_be(key, kind)
    local there = redis.call('TYPE', key).ok
    if there ~= 'none' and there ~= kind then
        wrong = 'WRONGTYPE the key ' .. key .. ' is a ' .. there .. ' and not a ' .. kind
    end
end
must_be(KEYS[1], 'set')
must_be(KEYS[2], 'zset')

-- A queue is looked through from its old end, and no farther than this, so that the server is held up for half a millisecond. What
-- may be farther back is said to be there, for a key that is free too late is better than a job that is there twice.
local LOOKED_THROUGH = 10000
local function in_queue(queue, raw)
    return redis.call('LPOS', queue, raw, 'RANK', -1, 'MAXLEN', LOOKED_THROUGH)
        or redis.call('LLEN', queue) > LOOKED_THROUGH
end
-- Whether what waits is still where it was put: it is looked for once a minute at most, and only if somebody asks.
local function still_waits(key, id, entry)
    if unique_now - entry.checked < CHECK_AFTER then return true end
    local _, _, queue = unique_of(entry.rest)
    local there = redis.call('ZSCORE', KEYS[2], entry.rest) or redis.call('ZSCORE', KEYS[3], entry.rest)
        or (type(queue) == 'string' and in_queue(prefix .. queue, entry.rest))
    if there then
        entry.checked = unique_now
        put_entry(key, id, entry)
    end
    return there and true or false
end
local function holds(key, id, entry)
    if entry.state == 'g' then return in_period(entry) end
    if entry.window == 'p' then return in_period(entry) end
    if entry.state == 'w' then return still_waits(key, id, entry) end
    return entry.window == 'd' and redis.call('ZSCORE', KEYS[4], (string.match(entry.rest, '^%d+'))) and true or false
end

-- How each key will stand when the jobs before are in: entries by id, and in which order they were put there.
local planned = {}
local function plan_for(key)
    if not planned[key] then
        local entries, there = {}, redis.call('HGETALL', key)
        for i = 1, #there, 2 do entries[there[i]] = entry_in(there[i + 1]) end
        planned[key] = entries
    end
    return planned[key]
end
-- Who stands for the others: of those that wait whoever took the key first, or else who runs, or is gone.
local function holder(key)
    local best
    for id, entry in pairs(plan_for(key)) do
        if holds(key, id, entry) then
            local waits, best_waits = entry.state == 'w', best and best[2].state == 'w'
            if not best or (waits and not best_waits)
                or (waits == best_waits and entry.order < best[2].order) then
                best = { id, entry }
            end
        end
    end
    return best
end

local steps, answers, ask, order = {}, {}, { 'ask' }, 1000000000000000
local function plan_unique()
    local window, period, clash, queue, score, raw = next_arg(), tonumber(next_arg()), next_arg(), next_arg(), next_arg(), next_arg()
    local expected, becomes = next_arg(), next_arg()
    if score == '' then must_be(prefix .. queue, 'list') end
    local key, id = unique_of(raw)
    local there, entries = holder(key), plan_for(key)
    local winner = id
    if there and (clash == 'first' or there[2].state ~= 'w') then
        answers[#answers + 1] = { 'first', there[1] }
        return
    end
    if there then
        winner = there[1]
        answers[#answers + 1] = { 'replaced', winner }
        if there[2].rest ~= expected then
            ask[#ask + 1] = #answers - 1
            ask[#ask + 1] = there[2].rest
            becomes = there[2].rest
        end
        steps[#steps + 1] = { 'replace', key, winner, there[2].rest, becomes }
        there[2].rest = becomes
    else
        answers[#answers + 1] = { 'created', id }
        order = order + 1
        entries[id] = { state = 'w', window = window, until_when = window == 'p' and unique_now + period or 0,
            order = order, checked = unique_now, rest = raw }
        steps[#steps + 1] = { 'create', key, id, queue, score, raw }
    end
    if clash == 'replace' then
        for other, entry in pairs(entries) do
            if other ~= winner and (entry.state == 'r' or entry.state == 's') then
                entry.state, entry.rest = 's', string.match(entry.rest, '^%d*') .. ';' .. winner
                steps[#steps + 1] = { 'mark', key, other }
            elseif other ~= winner and entry.state == 'w' and holds(key, other, entry) then
                steps[#steps + 1] = { 'end', key, other, entry.rest }
                entries[other] = nil
            end
        end
    end
end

while at < #ARGV do
    local what = next_arg()
    if what == 'queue' then
        local queue, jobs = next_arg(), {}
        must_be(prefix .. queue, 'list')
        for i = 1, tonumber(next_arg()) do jobs[i] = next_arg() end
        steps[#steps + 1] = { 'queue', queue, jobs }
    elseif what == 'set' then
        local score, raw = next_arg(), next_arg()
        if delayed ~= '' then
            must_be(delayed .. score, 'list')
            must_be(ARGV[4] .. raw, 'set')
        end
        steps[#steps + 1] = { 'set', score, raw }
    else
        plan_unique()
    end
end
if wrong then return redis.error_reply(wrong) end
if #ask > 1 then return ask end

local function queue_of(raw)
    local _, _, queue = unique_of(raw)
    return prefix .. queue
end
-- Puts one in the place of another, wherever that waits.
local function replace(before, after)
    for _, set in ipairs({ KEYS[2], KEYS[3] }) do
        local score = redis.call('ZSCORE', set, before)
        if score then
            redis.call('ZREM', set, before)
            redis.call('ZADD', set, score, after)
            return
        end
    end
    if redis.call('LINSERT', queue_of(before), 'BEFORE', before, after) > 0 then
        redis.call('LREM', queue_of(before), 1, before)
    end
end
local function remove(raw)
    if redis.call('ZREM', KEYS[2], raw) + redis.call('ZREM', KEYS[3], raw) == 0 then
        redis.call('LREM', queue_of(raw), 1, raw)
    end
end

for _, step in ipairs(steps) do
    local what = step[1]
    if what == 'queue' then
        redis.call('SADD', KEYS[1], step[2])
        local jobs = step[3]
        for i = 1, #jobs, 1000 do
            redis.call(push, prefix .. step[2], unpack(jobs, i, math.min(i + 999, #jobs)))
        end
    elseif what == 'set' then
        local score, raw = step[2], step[3]
        if delayed ~= '' then
            redis.call('RPUSH', delayed .. score, raw)
            redis.call('SADD', ARGV[4] .. raw, 'delayed:' .. score)
            raw = score
        end
        redis.call('ZADD', KEYS[2], score, raw)
    elseif what == 'create' then
        if step[5] == '' then
            redis.call('SADD', KEYS[1], step[4])
            redis.call(push, prefix .. step[4], step[6])
        else
            redis.call('ZADD', KEYS[2], step[5], step[6])
        end
        planned[step[2]][step[3]].order = next_order()
        redis.call('PERSIST', step[2])
    elseif what == 'replace' then
        replace(step[4], step[5])
    elseif what == 'end' then
        remove(step[4])
        redis.call('HDEL', step[2], step[3])
        redis.call('INCR', OURS .. 'superseded')
    end
    if what == 'create' or what == 'replace' or what == 'mark' then
        local entry = planned[step[2]][step[3]]
        if entry then put_entry(step[2], step[3], entry) end
    end
end
return answers
