-- Removes a window from the changed windows, unless it has changed again.
--
-- KEYS: changed windows with their change counters
-- ARGV: window | change counter that was read
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
