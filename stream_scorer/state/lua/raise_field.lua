-- Raises a number, if the value is above it.
--
-- KEYS: head
-- ARGV: field | value
--
-- Returns the number.
local had = redis.call('HGET', KEYS[1], ARGV[1])
if had and tonumber(had) >= tonumber(ARGV[2]) then return had end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return ARGV[2]
