-- Opens the counters: sets the epoch and the applied offsets that are missing. Existing values stay.
--
-- KEYS: head | a hash, a set and a sorted set to try the commands of `apply_counters` on
-- ARGV: epoch to use if there is none | (source, first offset) per source
--
-- Returns the current epoch.
local call = redis.call
-- Redis does not roll back a script: a user who may run only some of the commands would count twice. So it fails here.
call('HSET', KEYS[2], 'f', 1)
call('HINCRBY', KEYS[2], 'f', 1)
call('HGET', KEYS[2], 'f')
call('SADD', KEYS[3], 1)
call('ZADD', KEYS[4], 1, 1)
for k = 2, 4 do call('EXPIRE', KEYS[k], 60) end

call('HSETNX', KEYS[1], 'epoch', ARGV[1])
for i = 2, #ARGV, 2 do call('HSETNX', KEYS[1], 'm:' .. ARGV[i], ARGV[i + 1]) end
return call('HGET', KEYS[1], 'epoch')
