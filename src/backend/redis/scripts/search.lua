-- (unique.lua stands before this.) Looks through a part of what stands at a key.
-- KEYS: 1 the key, 2 leases, 3 cancelled, 4 the mark that there are lapsed jobs, 5 what our own keys begin with.
-- ARGV: 1 list, tail (a list from its end), delayed (a set of seconds, of each a list), zset or hash, 2 the first place, 3 how many places, 4 what it must have in
--       it, 5 what it must not have in it, if anything, 6 where the failed attempts are counted of jobs that do not say it,
--       7 what the keys of the lists begin with that stand for seconds, 8 the second in whose list the first place is.
-- Answers how many there were in this part (of those that wait for seconds: the place in the list of the last second that was looked at), that second, if there may be more behind it, and of those that are meant: what stands there, its score or its field,
-- how often its lease has lapsed, when its lease runs out (ms), whether it is to be cancelled, and which job's payload
-- has superseded its own.
local kind, from, most, with, without = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local some_lapsed = redis.call('EXISTS', KEYS[4]) == 1
local some_tried = ARGV[6] ~= '' and redis.call('EXISTS', ARGV[6]) == 1
local found, seen, last = {}, 0, ''
local function look(value, beside)
    seen = seen + 1
    if not string.find(value, with, 1, true) then return end
    if without ~= '' and string.find(value, without, 1, true) then return end
    local raw, lapses, runs_out, cancelled, superseded_by = value, '0', '0', 0, ''
    if kind == 'hash' then
        local length, start = string.match(value, '^%d+:(%d+):()')
        raw = string.sub(value, start + length)
        runs_out = redis.call('ZSCORE', KEYS[2], beside) or '0'
        cancelled = redis.call('HEXISTS', KEYS[3], beside)
        local key, id = unique_of(raw)
        local entry = key and entry_in(redis.call('HGET', key, id))
        if entry and entry.state == 's' then superseded_by = string.match(entry.rest, '^%d*;(.*)$') or '' end
    end
    if some_lapsed then lapses = redis.call('GET', KEYS[4] .. ':' .. redis.sha1hex(raw)) or '0' end
    if some_tried then
        local tries = redis.call('GET', ARGV[6] .. ':' .. redis.sha1hex(raw)) or '0'
        lapses = string.format('%.0f', (tonumber(lapses) or 0) + tonumber(tries))
    end
    found[#found + 1] = { value, beside, lapses, runs_out, cancelled, superseded_by }
end
if kind == 'list' then
    for _, value in ipairs(redis.call('LRANGE', KEYS[1], from, from + most - 1)) do look(value, '') end
elseif kind == 'tail' then
    local there = redis.call('LRANGE', KEYS[1], -(from + most), -(from + 1))
    for i = #there, 1, -1 do look(there[i], '') end
elseif kind == 'delayed' then
    local seconds = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[8], '+inf', 'WITHSCORES', 'LIMIT', 0, most)
    local place, left = 0, most
    for i = 1, #seconds, 2 do
        -- It may have gone meanwhile.
        place = seconds[i + 1] == ARGV[8] and from or 0
        local there = redis.call('LRANGE', ARGV[7] .. seconds[i], place, place + left - 1)
        for _, value in ipairs(there) do look(value, seconds[i]) end
        place, left = place + #there, left - #there
        if left == 0 or i + 1 == 2 * most then
            last = seconds[i + 1]
            break
        end
    end
    seen = place
elseif kind == 'zset' then
    local there = redis.call('ZRANGE', KEYS[1], from, from + most - 1, 'WITHSCORES')
    for i = 1, #there, 2 do look(there[i], there[i + 1]) end
else
    -- Of those with workers there are as many as these have slots.
    local there = redis.call('HGETALL', KEYS[1])
    for i = 1, #there, 2 do look(there[i + 1], there[i]) end
end
return { seen, last, found }
