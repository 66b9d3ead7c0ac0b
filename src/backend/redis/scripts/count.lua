-- KEYS: 1 queues, 2 schedule, 3 retry, 4 leases, 5 dead, 6 processed, 7 failed, 8 what our own keys begin with. ARGV: 1 what a
-- queue's key begins with, 2 what the key of a list begins with in which jobs wait for the same second, or nothing, 3 how dead ones are kept, 4 from
-- which second on those are counted, 5 how many seconds at most.
-- If there were so many seconds, answers how many wait for these, and the last of them: more are asked for with the next
-- call, and all else with the last, so that who comes into a queue meanwhile is rather counted twice than not at all.
-- Else answers how many are ready, wait, are with workers, are dead, were run, failed of these, and were superseded.
local of_seconds = 0
if ARGV[2] ~= '' then
    local seconds = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[4], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[5])
    for i = 1, #seconds, 2 do
        of_seconds = of_seconds + redis.call('LLEN', ARGV[2] .. seconds[i])
    end
    if #seconds == 2 * tonumber(ARGV[5]) then return { of_seconds, seconds[#seconds] } end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ready = redis.call('ZCOUNT', KEYS[4], '-inf', now)
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    ready = ready + redis.call('LLEN', ARGV[1] .. name)
end
local waiting = redis.call('ZCARD', KEYS[3]) + of_seconds
if ARGV[2] == '' then waiting = waiting + redis.call('ZCARD', KEYS[2]) end
local dead = redis.call(ARGV[3] == 'list' and 'LLEN' or 'ZCARD', KEYS[5])
local with_workers = redis.call('ZCOUNT', KEYS[4], '(' .. string.format('%.0f', now), '+inf')
local processed = tonumber(redis.call('GET', KEYS[6]) or 0)
local failed = tonumber(redis.call('GET', KEYS[7]) or 0)
return { ready, waiting, with_workers, dead, processed, failed, tonumber(redis.call('GET', KEYS[8] .. 'superseded') or 0) }
