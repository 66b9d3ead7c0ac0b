-- (unique.lua stands before this.) Changes a job where it stands, unless it has gone from there.
-- KEYS: 1 where it stands, 2 queues, 3 dead, 4 cancelled, 5 schedule, 6 what our own keys begin with. ARGV: 1 list, delayed, zset or hash, 2 what stands there (for a hash:
-- its field), 3 where it is to go: dead, queue, away, or cancelled, 4 what is to stand there, 5 the queue, 6 what a
-- queue's key begins with, 7 the most that are kept dead, 8 for how many seconds, 9 the command that
-- puts at the back of a queue, 10 how dead ones are kept, 11 the second for which a delayed one waits, 12 what the key of
-- the set begins with that says where it waits, 13 where the failed attempts are counted of jobs that do not say it, 14
-- how many there are.
-- Answers 1 if it was changed.
local kind, here, to, after = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if to == 'cancelled' then
    if redis.call('HEXISTS', KEYS[1], here) == 0 then return 0 end
    redis.call('HSET', KEYS[4], here, 1)
    return 1
end
if to == 'queue' then
    local there = redis.call('TYPE', ARGV[6] .. ARGV[5]).ok
    if there ~= 'none' and there ~= 'list' then
        return redis.error_reply('WRONGTYPE the key ' .. ARGV[6] .. ARGV[5] .. ' is a ' .. there .. ' and not a list')
    end
end
local key, id = unique_of(here)
-- A dead job's key may have been taken by another meanwhile.
if to == 'queue' and key and KEYS[1] == KEYS[3] then
    local there = redis.call('HGETALL', key)
    for i = 1, #there, 2 do
        local entry = entry_in(there[i + 1])
        local holds = entry.window == 'p' and in_period(entry) or entry.window ~= 'p' and entry.state == 'w'
            or entry.window == 'd' and entry.state ~= 'g'
        if there[i] ~= id and holds then return 0 end
    end
end
local gone
if kind == 'list' or kind == 'delayed' then
    gone = redis.call('LREM', KEYS[1], -1, here)
else
    gone = redis.call('ZREM', KEYS[1], here)
end
if gone == 0 then return 0 end
if to ~= 'queue' then
    unique_ended(here)
elseif key then
    -- A dead one takes its key again; its period, if that is its window, is not begun anew.
    local entry = entry_in(redis.call('HGET', key, id))
    if not entry then
        local window = cjson.decode(here).tidegate.unique.window
        window = window == 'queued' and 'q' or window == 'done' and 'd' or 'p'
        entry = { window = window, until_when = 0, order = next_order(), checked = unique_now }
    end
    entry.state, entry.rest = 'w', after
    put_entry(key, id, entry)
    redis.call('PERSIST', key)
end
if kind == 'delayed' then
    if not redis.call('LPOS', KEYS[1], here) then redis.call('SREM', ARGV[12] .. here, 'delayed:' .. ARGV[11]) end
    if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('ZREM', KEYS[5], ARGV[11]) end
end
if to == 'dead' and ARGV[10] == 'list' then
    redis.call('RPUSH', KEYS[3], after)
    if ARGV[7] == '0' then
        redis.call('DEL', KEYS[3])
    elseif ARGV[7] ~= '' then
        redis.call('LTRIM', KEYS[3], -tonumber(ARGV[7]), -1)
    end
elseif to == 'dead' then
    local now = unique_now / 1000
    redis.call('ZADD', KEYS[3], string.format('%.3f', now), after)
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. string.format('%.3f', now - tonumber(ARGV[8])))
    redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[7]))
elseif to == 'queue' then
    redis.call(ARGV[9], ARGV[6] .. ARGV[5], after)
    redis.call('SADD', KEYS[2], ARGV[5])
    if tonumber(ARGV[14]) > 0 and ARGV[13] ~= '' then
        redis.call('SET', ARGV[13], 1, 'EX', 259200)
        redis.call('SET', ARGV[13] .. ':' .. redis.sha1hex(after), ARGV[14], 'EX', 259200)
    end
end
return 1
