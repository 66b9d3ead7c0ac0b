-- (unique.lua stands before this.) Moves jobs whose time has come, each unless another has moved it meanwhile.
-- KEYS: 1 queues, 2 dead. ARGV: 1 what a queue's key begins with, 2 the command that puts at its
-- back, then for each where it waits, what stands there, its
-- queue, and what is to stand there; nothing as the queue for what can't be understood and is kept with the dead ones.
-- Answers how many were moved.
local moved = 0
for i = 3, #ARGV, 4 do
    local set, before, queue, after = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local score = redis.call('ZSCORE', set, before)
    if score then
        if queue == '' or type(redis.pcall(ARGV[2], ARGV[1] .. queue, after)) == 'table' then
            redis.call('ZADD', KEYS[2], score, before)
            unique_ended(before)
        else
            unique_back(before, after)
            redis.call('SADD', KEYS[1], queue)
        end
        redis.call('ZREM', set, before)
        moved = moved + 1
    end
end
return moved
