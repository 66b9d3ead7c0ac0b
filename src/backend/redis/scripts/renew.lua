-- (away.lua stands before this.) Renews leases that have not run out, or did so while the server was away.
-- KEYS: 1 leases, 2 cancelled, 3 when a worker was last seen, 4 until when leases are good that have run out since then. ARGV: 1 ttl in ms, 2 nothing
-- where outages take leases, then tokens. Answers for each: 0 lost, 1 kept, 2 to be cancelled.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- Not refused by a server whose memory is full, as what comes first in a script may be.
redis.call('ZREM', KEYS[1], '')
local lenient, since = 0, 0
if ARGV[2] ~= '' then lenient, since = away(KEYS[3], KEYS[4], now, tonumber(ARGV[1])) end
local until_when = string.format('%.0f', now + tonumber(ARGV[1]))
local some_cancelled = redis.call('EXISTS', KEYS[2]) == 1
local answers = {}
for i = 3, #ARGV do
    local before = redis.call('ZSCORE', KEYS[1], ARGV[i])
    if not before or tonumber(before) <= (lenient > 0 and since or now) then
        answers[i - 2] = 0
    else
        redis.call('ZADD', KEYS[1], 'XX', until_when, ARGV[i])
        answers[i - 2] = (some_cancelled and redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1) and 2 or 1
    end
end
return answers
