-- Raises a maximum, if the value is above it.
--
-- KEYS: head
-- ARGV: name | value
local had = redis.call('HGET', KEYS[1], 'x:' .. ARGV[1])
if not had or tonumber(had) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'x:' .. ARGV[1], ARGV[2]) end
return 1
