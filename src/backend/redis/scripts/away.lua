-- While the server is away nobody can renew a lease, and none is lost by that: when no worker was seen for a time in which
-- each would have been, there is a moment in which leases are good that have run out since, for all to come back.
-- If the server went away again in that moment, those who had not come back yet have another; in all for a bounded time.
-- Answers how long (ms) that goes on, and since when leases may have run out; 0 and 0 for leases as they are.
local MOMENT, IN_ALL, KEPT = 5000, 600000, 3600000
local function away(seen, lenient, now, ttl)
    local before = tonumber(redis.call('GET', seen) or now)
    local until_when, since = string.match(redis.call('GET', lenient) or '', '^(%d+) (%d+)$')
    until_when, since = tonumber(until_when or 0), tonumber(since or 0)
    if until_when > now + MOMENT then
        -- The clock was set back, which is not to make it longer.
        redis.call('DEL', lenient)
        until_when = 0
    elseif until_when <= now and now - before >= math.max(ttl / 2, 3000) then
        if before >= until_when or now - since > IN_ALL then since = before end
        until_when = now + MOMENT
        local mark = string.format('%.0f %.0f', until_when, since)
        redis.call('SET', lenient, mark, 'PX', KEPT)
    end
    if now - before >= 1000 or now <= before then redis.call('SET', seen, string.format('%.0f', now)) end
    if until_when <= now then return 0, 0 end
    return until_when - now, since
end
