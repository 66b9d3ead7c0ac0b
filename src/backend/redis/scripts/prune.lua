-- Takes those out of the set of processes of whom nothing was heard for so long that what they told is gone. Once a
-- minute at most, whoever asks.
--
-- KEYS: 1 processes (set: identity), 2 a mark that this was done. ARGV: 1 what all keys begin with
-- Answers: how many were taken out.
if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', 60) then return 0 end
local gone = 0
for _, identity in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if redis.call('EXISTS', ARGV[1] .. identity) == 0 then
        redis.call('SREM', KEYS[1], identity)
        gone = gone + 1
    end
end
return gone
