-- (unique.lua and away.lua stand before this.) Settles, gives back the jobs whose lease has run out, then takes jobs, in one step. What comes
-- after a lease has run out changes nothing, unless that was while the server was away.
--
-- KEYS: 1 leases (sorted set: token, when it runs out in ms), 2 held (hash: token, what was handed over), 3 the last
--       token, 4 a mark that there are lapsed jobs, 5 cancelled (hash: token), 6 queues, 7 schedule, 8 retry, 9 dead,
--       10 processed, 11 failed, 12 when a worker was last seen, 13 until when leases are good that have run out since then, 14 what
--       our own keys begin with
-- ARGV: 1 ttl in ms, 2 the most to take, 3 what a queue's key begins with, 4 what the counters of today, or of this worker, end with, 5 the most that are kept dead,
--       6 for how many seconds, 7 of how many jobs with a lapsed lease to give back at most, 8 the command that
--       puts at the back of a queue, 9 that puts at its front, 10 that takes from it, 11 how dead ones are kept (zset or list), 12 where
--       the failed attempts are counted of jobs that do not say it, 13 a key that says `true` while none are taken, 14 until when
--       (ms) anything is done, since who asks waits no longer and will ask again, 15 whether to note that a worker was seen (1, 0; nothing where
--       outages take leases), 16 how many queues there are to take from (0: all), their names, then of how many jobs the lease is to be
--       renewed, their tokens, then how many are just done, their tokens, then the other settlements to the end.
-- Answers the time in ms; then, unless it was too late, how long until something is due in ms (-1: nothing), stale tokens, tokens of jobs that
--       were not done and are to be cancelled, the token of the first job taken, the jobs (of each queue its name and what stood
--       in it), of those whose lease has lapsed before the place in this answer and how often, how many jobs
--       were given back, of those whose failed attempts are counted here the place and how many, and whether none are
--       taken now.
local leases, held, counter, lapsed, cancelled = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local queues, schedule, retry, dead, processed_key, failed_key = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local ttl, room, prefix, today = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local MARK_SECONDS, STAT_SECONDS = 259200, 157680000
local back, front, pop = ARGV[8], ARGV[9], ARGV[10]
local dead_in, tried = ARGV[11], ARGV[12]
local at = 16

local function int(number) return string.format('%.0f', number) end
local function next_arg() at = at + 1; return ARGV[at] end

local now = unique_now
if now > tonumber(ARGV[14]) then return { now } end
local seconds = tonumber(unique_time[1]) + tonumber(unique_time[2]) / 1000000
local function score(after) return string.format('%.6f', seconds + after / 1000) end

local function parts(value)
    local length, from = string.match(value, '^%d+:(%d+):()')
    return string.sub(value, from, from + length - 1), string.sub(value, from + length)
end
local function mark_of(raw) return lapsed .. ':' .. redis.sha1hex(raw) end

local function tried_of(raw) return tried .. ':' .. redis.sha1hex(raw) end

local function bury(raw)
    if dead_in == 'list' then
        redis.call('RPUSH', dead, raw)
        if ARGV[5] == '0' then
            redis.call('DEL', dead)
        elseif ARGV[5] ~= '' then
            redis.call('LTRIM', dead, -tonumber(ARGV[5]), -1)
        end
        return
    end
    redis.call('ZADD', dead, score(0), raw)
    redis.call('ZREMRANGEBYSCORE', dead, '-inf', '(' .. score(-1000 * tonumber(ARGV[6])))
    redis.call('ZREMRANGEBYRANK', dead, 0, -1 - tonumber(ARGV[5]))
end

-- A queue whose key is something else can't take it: it is kept with the dead ones, or waits on where these are entries
-- of another form.
local AGAIN_MS = 30000
local function push(side, queue, raw)
    if type(redis.pcall(side, prefix .. queue, raw)) == 'table' then
        if dead_in == 'list' then
            local place = int(redis.call('INCR', counter))
            redis.call('ZADD', retry, score(AGAIN_MS), place .. ':0:' .. #queue .. ':0:' .. queue .. raw)
        else
            bury(raw)
        end
    else
        redis.call('SADD', queues, queue)
    end
end

local some_lapsed = redis.call('EXISTS', lapsed) == 1
local some_tried = tried ~= '' and redis.call('EXISTS', tried) == 1
local some_cancelled = redis.call('EXISTS', cancelled) == 1

local names = {}
for i = 1, tonumber(ARGV[16]) do names[i] = next_arg() end

-- Their heartbeat can't be heard, but this worker can.
local overdue = {}
for i = 1, tonumber(next_arg()) do overdue[i] = next_arg() end

local stale, refused, processed, failed = {}, {}, 0, 0
local done = tonumber(next_arg())
-- A server whose memory is full refuses what may need more only until a script has written something: this must go
-- on, since it is what frees memory.
local lenient, since = 0, 0
local some_expired = redis.call('ZCOUNT', leases, '-inf', now) > 0
if some_expired or at + done < #ARGV or ARGV[15] == '1' then redis.call('ZREM', leases, '') end
if ARGV[15] ~= '' and (some_expired or ARGV[15] == '1') then lenient, since = away(KEYS[12], KEYS[13], now, ttl) end
-- What ran out until then is lost.
local lost_until = lenient > 0 and since or now
local function is_held(until_when) return until_when and tonumber(until_when) > lost_until end
for _, token in ipairs(overdue) do
    if is_held(redis.call('ZSCORE', leases, token)) then redis.call('ZADD', leases, 'XX', int(now + ttl), token) end
end
local expired = some_expired and redis.call('ZRANGEBYSCORE', leases, '-inf', int(lost_until), 'LIMIT', 0, ARGV[7]) or {}
if done > 0 then
    local tokens = {}
    for i = 1, done do tokens[i] = next_arg() end
    local ours = {}
    for i, until_when in ipairs(redis.call('ZMSCORE', leases, unpack(tokens))) do
        if is_held(until_when) then
            ours[#ours + 1] = tokens[i]
        else
            stale[#stale + 1] = tokens[i]
        end
    end
    if #ours > 0 then
        redis.call('ZREM', leases, unpack(ours))
        redis.call('HDEL', held, unpack(ours))
        if some_cancelled then redis.call('HDEL', cancelled, unpack(ours)) end
        processed = #ours
    end
end

local settles = done > 0 or at < #ARGV
while at < #ARGV do
    local what, token = next_arg(), next_arg()
    local first = what ~= 'done' and next_arg()
    local second = (what == 'retry' or what == 'later' or what == 'wait') and next_arg()
    local value = is_held(redis.call('ZSCORE', leases, token)) and redis.call('HGET', held, token)
    if not value then
        stale[#stale + 1] = token
    elseif what ~= 'done' and what ~= 'end' and what ~= 'unreadable' and some_cancelled and redis.call('HEXISTS', cancelled, token) == 1 then
        refused[#refused + 1] = token
    else
        local queue, raw = parts(value)
        local ends = what == 'done' or what == 'dead' or what == 'end' or what == 'unreadable'
        if ends then
            unique_ended(raw)
        elseif unique_back(raw, second or raw) then
            what = 'superseded'
        end
        if what == 'done' then
            processed = processed + 1
        elseif what == 'retry' then
            push(back, first, second)
        elseif what == 'again' then
            push(back, queue, raw)
        elseif what == 'later' or what == 'wait' then
            redis.call('ZADD', retry, score(tonumber(first)), second)
        elseif ends then
            -- What can't be understood may be nothing at all, and is kept.
            if first ~= '' or what == 'unreadable' then bury(first) end
        elseif what == 'back' and tonumber(first) == 0 then
            push(front, queue, raw)
        elseif what == 'back' then
            redis.call('ZADD', schedule, score(tonumber(first)), raw)
        end
        local unharmed = what == 'back' or what == 'wait'
        if what ~= 'done' and what ~= 'superseded' and what ~= 'unreadable' and not unharmed then
            processed, failed = processed + 1, failed + 1
        end
        -- One that was handed back as it was keeps its count.
        if not unharmed and some_lapsed then redis.call('DEL', mark_of(raw)) end
        if what == 'again' then
            redis.call('SET', tried, 1, 'EX', MARK_SECONDS)
            redis.call('SET', tried_of(raw), first, 'EX', MARK_SECONDS)
            some_tried = true
        elseif not unharmed and some_tried then
            redis.call('DEL', tried_of(raw))
        end
        redis.call('ZREM', leases, token)
        redis.call('HDEL', held, token)
        redis.call('HDEL', cancelled, token)
    end
end

local function count(key, number)
    if number > 0 then
        redis.call('INCRBY', key, number)
        if today == '' then return end
        local day = key .. ':' .. today
        if redis.call('INCRBY', day, number) == number then redis.call('EXPIRE', day, STAT_SECONDS) end
    end
end
count(processed_key, processed)
count(failed_key, failed)

local reclaimed = 0
if #expired > 0 then
    -- The newest first: each is put before the one that came after it.
    table.sort(expired, function(a, b) return tonumber(a) > tonumber(b) end)
    redis.call('SET', lapsed, 1, 'EX', MARK_SECONDS)
    some_lapsed = true
    for _, token in ipairs(expired) do
        local value = redis.call('HGET', held, token)
        if value then
            local queue, raw = parts(value)
            local mark = mark_of(raw)
            if redis.call('HEXISTS', cancelled, token) == 1 then
                redis.call('SET', mark, 'cancelled')
            elseif redis.call('GET', mark) ~= 'cancelled' then
                redis.call('INCR', mark)
            end
            redis.call('EXPIRE', mark, MARK_SECONDS)
            if unique_back(raw, raw) then
                redis.call('DEL', mark)
            else
                push(front, queue, raw)
            end
            redis.call('HDEL', held, token)
            reclaimed = reclaimed + 1
        end
        redis.call('ZREM', leases, token)
        redis.call('HDEL', cancelled, token)
    end
end

local paused = ARGV[13] ~= '' and redis.call('GET', ARGV[13])
paused = paused and string.lower(string.match(paused, '^%s*(.-)%s*$')) == 'true'
if paused then room = 0 end
local taken, lapses, tries, total = {}, {}, {}, 0
local function note(list, place, key)
    local times = redis.call('GET', key)
    if times then
        list[#list + 1] = place
        list[#list + 1] = times
    end
end
if room > 0 then
    if #names == 0 then
        names = redis.call('SMEMBERS', queues)
        -- Whoever takes from all waits for this one too before there is one (`due::served`).
        local known = false
        for _, name in ipairs(names) do known = known or name == 'default' end
        if not known then names[#names + 1] = 'default' end
        -- In Resque's layout apisonator's come first (`Keys::first`).
        local first = dead_in == 'list' and { priority = 1, main = 2, stats = 3 } or {}
        table.sort(names, function(a, b)
            local left, right = first[a] or 4, first[b] or 4
            if left ~= right then return left < right end
            return a < b
        end)
    end
    for _, name in ipairs(names) do
        local got = redis.pcall(pop, prefix .. name, room)
        if got and got.err then
            -- What was settled and taken before must be told of: the next call meets this again.
            if total == 0 and not settles then return redis.error_reply(got.err) end
            break
        elseif got then
            total, room = total + #got, room - #got
            table.insert(got, 1, name)
            taken[#taken + 1] = got
            if room == 0 then break end
        end
    end
end
local token = 0
if total > 0 then
    -- Never below the time in microseconds: a server that has lost its last writes, or all, as in a failover, gives no
    -- token a second time, and nobody who has one from before settles the job of another.
    token = math.max(tonumber(redis.call('GET', counter) or 0), now * 1000) + 1
    redis.call('SET', counter, int(token + total - 1))
    local entries, runs_out, number = {}, {}, token
    for _, group in ipairs(taken) do
        local head = int(now) .. ':' .. #group[1] .. ':' .. group[1]
        for i = 2, #group do
            local raw, name = group[i], int(number)
            entries[#entries + 1] = name
            entries[#entries + 1] = head .. raw
            runs_out[#runs_out + 1] = int(now + ttl)
            runs_out[#runs_out + 1] = name
            unique_taken(raw, name)
            if some_lapsed then note(lapses, number - token, mark_of(raw)) end
            if some_tried then note(tries, number - token, tried_of(raw)) end
            number = number + 1
        end
    end
    redis.call('HSET', held, unpack(entries))
    redis.call('ZADD', leases, unpack(runs_out))
end

local due = -1
local function sooner(key, scale, least)
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first[2] then
        local wait = math.max(least, math.ceil(tonumber(first[2]) * scale - now))
        if due < 0 or wait < due then due = wait end
    end
end
sooner(schedule, 1000, 0)
sooner(retry, 1000, 0)
local jobs_due = due
sooner(leases, 1, lenient)
return { now, jobs_due, due, stale, refused, token, taken, lapses, reclaimed, tries, paused and 1 or 0 }
