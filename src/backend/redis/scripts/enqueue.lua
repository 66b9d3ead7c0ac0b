-- Takes in all jobs or none.
-- KEYS: 1 queues, 2 schedule. ARGV: 1 what a queue's key begins with, 2 the command
-- that puts at the back of a queue, 3 what the key of a list begins with in which jobs wait for the same second, or
-- nothing if they wait in schedule itself, 4 what the key of the set begins with that says where a job waits, then for each queue its name, how many there are
-- and what is to stand in it, then nothing and for each that is to wait its score and what is to stand there.
local prefix, push, delayed, at = ARGV[1], ARGV[2], ARGV[3], 4
local function next_arg() at = at + 1; return ARGV[at] end
local wrong
local function must_be(key, kind)
    local there = redis.call('TYPE', key).ok
    if there ~= 'none' and there ~= kind then
        wrong = 'WRONGTYPE the key ' .. key .. ' is a ' .. there .. ' and not a ' .. kind
    end
end
must_be(KEYS[1], 'set')
must_be(KEYS[2], 'zset')
local groups = {}
while true do
    local queue = next_arg()
    if not queue or queue == '' then break end
    must_be(prefix .. queue, 'list')
    local jobs = {}
    for i = 1, tonumber(next_arg()) do jobs[i] = next_arg() end
    groups[#groups + 1] = { queue, jobs }
end
local waits = {}
while at < #ARGV do
    local score, raw = next_arg(), next_arg()
    if delayed ~= '' then
        must_be(delayed .. score, 'list')
        must_be(ARGV[4] .. raw, 'set')
    end
    waits[#waits + 1] = { score, raw }
end
if wrong then return redis.error_reply(wrong) end
for _, group in ipairs(groups) do
    redis.call('SADD', KEYS[1], group[1])
    local jobs = group[2]
    for i = 1, #jobs, 1000 do
        redis.call(push, prefix .. group[1], unpack(jobs, i, math.min(i + 999, #jobs)))
    end
end
for _, wait in ipairs(waits) do
    local score, raw = wait[1], wait[2]
    if delayed ~= '' then
        redis.call('RPUSH', delayed .. score, raw)
        redis.call('SADD', ARGV[4] .. raw, 'delayed:' .. score)
        raw = score
    end
    redis.call('ZADD', KEYS[2], score, raw)
end
return 1
