-- Takes or extends the lead, unless another process holds it.
--
-- KEYS: the leader
-- ARGV: name of this process | how long the lead lasts (ms)
--
-- Returns 1 if this process leads, else 0.
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
