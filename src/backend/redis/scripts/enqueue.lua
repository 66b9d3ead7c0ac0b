-- Takes in all jobs or none.
-- KEYS: 1 queues, 2 schedule. ARGV: 1 what a queue's key begins with, 2 the command
-- that puts at the back of a queue, then for each queue its name, how many there are
-- and what is to stand in it, then nothing and for each that is to wait its score and what is to stand there.
local prefix, push, at = ARGV[1], ARGV[2], 2
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
if wrong then return redis.error_reply(wrong) end
for _, group in ipairs(groups) do
    redis.call('SADD', KEYS[1], group[1])
    local jobs = group[2]
    for i = 1, #jobs, 1000 do
        redis.call(push, prefix .. group[1], unpack(jobs, i, math.min(i + 999, #jobs)))
    end
end
while at < #ARGV do
    local score = next_arg()
    redis.call('ZADD', KEYS[2], score, next_arg())
end
return 1
