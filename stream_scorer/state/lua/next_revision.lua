-- Gives a window its next revision.
--
-- KEYS: revision of the window
-- ARGV: lower bound | time to live (s)
--
-- Returns the revision, which is above both the last one and the bound. Not a Lua number: those have 14 digits as text.
local last = redis.call('GET', KEYS[1])
if not last or tonumber(last) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('GET', KEYS[1])
