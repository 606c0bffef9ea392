-- Binds the counters to their origin, such as the broker's ids of their topics. If a value differs from before, the head is
-- deleted.
--
-- KEYS: head
-- ARGV: (name, value) each
--
-- Returns 1 if the counts are still there, else 0.
local kept = 1
for i = 1, #ARGV, 2 do
  local had = redis.call('HGET', KEYS[1], 't:' .. ARGV[i])
  if had and had ~= ARGV[i + 1] then kept = 0 end
end
if kept == 0 then redis.call('DEL', KEYS[1]) end
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], 't:' .. ARGV[i], ARGV[i + 1]) end
return kept
