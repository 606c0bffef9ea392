-- Adds the counts of one batch and advances the applied offset of its source, in one atomic step.
--
-- KEYS: head | prefix of the other keys
-- ARGV: epoch | source, start, end | time to live (s) | number of maxima, then (name, value) each |
--       number of due kinds, then the kinds | number of cells, then (window, label, number of fields, then (field, delta)
--       each) each
--
-- Returns the status and the applied offset: 'applied', 'done', 'trim', 'gap' or 'lost', see `CounterReply`. Every check
-- comes before the first write, because Redis does not roll back a script that fails half way.
local head, base = KEYS[1], KEYS[2]
if redis.call('HGET', head, 'epoch') ~= ARGV[1] then return {'lost', '-1'} end
local offset = redis.call('HGET', head, 'm:' .. ARGV[2])
if not offset then return {'lost', '-1'} end
local at, from, to = tonumber(offset), tonumber(ARGV[3]), tonumber(ARGV[4])
if at < from then return {'gap', offset} end
if at >= to then return {'done', offset} end
if at > from then return {'trim', offset} end

local ttl, i = ARGV[5], 6
local n = tonumber(ARGV[i]); i = i + 1
for _ = 1, n do
  local had = redis.call('HGET', head, 'x:' .. ARGV[i])
  if not had or tonumber(had) < tonumber(ARGV[i + 1]) then redis.call('HSET', head, 'x:' .. ARGV[i], ARGV[i + 1]) end
  i = i + 2
end

n = tonumber(ARGV[i]); i = i + 1
local kinds = {}
for k = 1, n do kinds[k] = ARGV[i]; i = i + 1 end

n = tonumber(ARGV[i]); i = i + 1
for _ = 1, n do
  local window, label, fields = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  i = i + 3
  local cell, labels = base .. 'c:' .. window .. '|' .. label, base .. 'p:' .. window
  for _ = 1, fields do
    redis.call('HINCRBY', cell, ARGV[i], ARGV[i + 1])
    i = i + 2
  end
  redis.call('SADD', labels, label)
  redis.call('EXPIRE', cell, ttl)
  redis.call('EXPIRE', labels, ttl)
  redis.call('HINCRBY', base .. 'dirty', window, 1)
  for _, kind in ipairs(kinds) do redis.call('ZADD', base .. 'due:' .. kind, window, window) end
end

redis.call('HSET', head, 'm:' .. ARGV[2], ARGV[4])
return {'applied', ARGV[4]}
