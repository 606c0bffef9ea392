-- Gives a window its next revision, unless the counts are those of another epoch.
--
-- KEYS: revision of the window | head
-- ARGV: lower bound | time to live (s) | epoch
--
-- Returns the revision, which is above both the last one and the bound, or nothing if Redis has lost the counts: a revision
-- that begins anew could be below those that are published. Not a Lua number: those have 14 digits as text.
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[3] then return false end
local last = redis.call('GET', KEYS[1])
if not last or tonumber(last) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('GET', KEYS[1])
