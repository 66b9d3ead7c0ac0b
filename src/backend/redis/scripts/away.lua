-- While the server is away nobody can renew a lease, and none is lost by that: when no worker was seen for a time in which
-- each would have been, there is a moment in which leases that have run out are as good as others, for all to come back.
-- Once a lease's time at most, so that somebody who is seen seldom does not keep them for ever.
-- Answers how long (ms) that goes on; 0 for leases as they are.
local function away(seen, lenient, now, ttl)
    local before = tonumber(redis.call('GET', seen) or now)
    local until_when = tonumber(redis.call('GET', lenient) or 0)
    if until_when == 0 and now - before >= math.max(ttl / 2, 3000) then
        until_when = now + math.ceil(ttl / 3)
        redis.call('SET', lenient, string.format('%.0f', until_when), 'PX', string.format('%.0f', ttl))
    end
    if now - before >= 1000 or now <= before then redis.call('SET', seen, string.format('%.0f', now)) end
    return math.max(0, until_when - now)
end
