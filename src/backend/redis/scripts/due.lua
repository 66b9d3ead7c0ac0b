-- (unique.lua stands before this.) Moves jobs whose time has come, each unless another has moved it meanwhile.
-- KEYS: 1 queues, 2 dead, 3 schedule, 4 retry, 5 the last token, 6 what our own keys
-- begin with. ARGV: 1 what a queue's key begins with, 2 the command
-- that puts at its back, 3 how dead ones are kept (zset or list), 4 what the key of a list begins with in which jobs wait
-- for the same second, 5 what the key of the set begins with that says where a job waits, 6 where the failed attempts are
-- counted of jobs that do not say it, then for each how it waits (zset or delayed), where (its key, or its second),
-- what stands there, its queue, what is to stand there, and its failed attempts; nothing as the queue for what can't be
-- understood and is kept with the dead ones; `gone` as how it waits for a second of which nothing is left.
-- Answers how many were moved.
local push, delayed, tried = ARGV[2], ARGV[4], ARGV[6]
local TRIED_SECONDS, AGAIN_SECONDS = 259200, 30
local moved = 0
-- It is dead since now: by when it was due it may long be too old to be kept.
local dead_since = string.format('%s.%06d', unique_time[1], tonumber(unique_time[2]))
local function move(before, queue, after, attempts)
    if queue ~= '' and type(redis.pcall(push, ARGV[1] .. queue, after)) ~= 'table' then
        redis.call('SADD', KEYS[1], queue)
        unique_back(before, after)
        if tonumber(attempts) > 0 then
            redis.call('SET', tried, 1, 'EX', TRIED_SECONDS)
            redis.call('SET', tried .. ':' .. redis.sha1hex(after), attempts, 'EX', TRIED_SECONDS)
        end
    elseif ARGV[3] == 'zset' then
        redis.call('ZADD', KEYS[2], dead_since, before)
        unique_ended(before)
    elseif queue == '' then
        redis.call('RPUSH', KEYS[2], after)
    else
        -- The key of its queue is something else: it waits on.
        local again = tonumber(redis.call('TIME')[1]) + AGAIN_SECONDS
        local token = string.format('%.0f', redis.call('INCR', KEYS[5]))
        redis.call('ZADD', KEYS[4], again, token .. ':' .. attempts .. ':' .. #queue .. ':0:' .. queue .. after)
    end
    moved = moved + 1
end
for i = 7, #ARGV, 6 do
    local how, where, before, queue, after, attempts = unpack(ARGV, i, i + 5)
    if how == 'zset' then
        if redis.call('ZREM', where, before) > 0 then move(before, queue, after, attempts) end
    else
        local list = delayed .. where
        if how == 'delayed' and redis.call('LREM', list, 1, before) > 0 then
            if not redis.call('LPOS', list, before) then
                redis.call('SREM', ARGV[5] .. before, 'delayed:' .. where)
            end
            move(before, queue, after, attempts)
        end
        if redis.call('EXISTS', list) == 0 then redis.call('ZREM', KEYS[3], where) end
    end
end
return moved
