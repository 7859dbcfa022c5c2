// What the board does beside htmx; every page works without it.
(() => {
  const doc = document, root = doc.documentElement
  const $ = (q, n = doc) => n.querySelector(q), $$ = (q, n = doc) => [...n.querySelectorAll(q)]
  const on = (name, fn) => doc.addEventListener(name, fn)
  const clock = Date.now, skew = Date.parse(root.dataset.now) - clock() || 0

  // Good news leaves after 8 s unless it is being read, trouble stays.
  const toast = (text, bad) => {
    const box = $(bad ? '#t-bad' : '#t-good').content.firstElementChild.cloneNode(true)
    $('p', box).textContent = text
    $('#toasts').append(box)
  }

  // Live, held, stale, signed out.
  let paused, out, wasHeld, fresh = clock(), active = fresh
  const live = $('#live'), stale = $('#stale')
  const region = () => $('[data-poll]'), checked = () => $$('[data-select]:checked')
  const held = () => out ? 'Signed out' : paused ? 'Paused' : doc.hidden ? 'Held, tab hidden'
    : $('dialog[open]') ? 'Held, dialog open' : checked().length ? `Held, ${checked().length} selected` : ''
  const every = () => clock() - active > 3e5 ? 60 : +region()?.dataset.poll || 15
  const tick = () => {
    for (const box of $$('#toasts > :not([data-stay])')) {
      box.left = box.matches(':hover, :focus-within') ? 8 : (box.left ?? 9) - 1
      if (!box.left) box.remove()
    }
    if (!region()) return
    const why = held()
    if (wasHeld && !why) { fresh = clock(); htmx.trigger(region(), 'every') }
    wasHeld = why
    const age = Math.round((clock() - fresh) / 1000), old = !why && age > every() * 2
    live.className = 'live ' + (why ? 'held' : old ? 'old' : 'on')
    live.lastChild.textContent = why || (old ? `Stale, ${age} s` : `Live, ${every()} s`)
    root.classList.toggle('stale', old || !!out)
    if (stale.hidden === old) {
      stale.hidden = !old
      stale.textContent = old ? `Numbers are over ${age - 1} s old, server not answering` : ''
    }
  }
  setInterval(tick, 1000)
  on('visibilitychange', tick)
  const wake = () => { if (every() > 59) wasHeld = 1; active = clock() }
  on('pointerdown', wake)

  on('htmx:config:request', e => {
    const { sourceElement: from, sourceEvent: event, request } = e.detail.ctx
    if (event.type === 'every') {
      if (held() || every() > 59 && clock() - fresh < 59e3) e.preventDefault()
    } else if (request.method === 'GET' && from.matches('form')) {
      for (const [key, value] of [...request.body]) if (!value) request.body.delete(key)
    }
  })
  on('htmx:after:request', e => {
    const { sourceElement: from, response: { status, headers }, request } = e.detail.ctx
    const poll = from.matches('[data-poll]')
    if (status === 401) $('#out').hidden = !(out = true)
    else if (status < 400) {
      if (poll) fresh = clock()
      if (request.method !== 'GET') from.closest('dialog')?.close()
    } else if (!poll && !from.hasAttribute('hx-status:' + status)) {
      toast(`Not done: the server answered ${status}. Request ${headers.get('X-Request-ID')}`, 1)
    }
  })
  on('htmx:error', e => {
    if (e.detail.ctx && !e.detail.ctx.sourceElement.matches('[data-poll]')) toast('No answer from the server. Look before trying again.', 1)
  })

  // Dialogs: #dialog takes content from the server, #confirm asks.
  const show = (box, opener) => {
    if (box.open) return
    box.returnValue = ''
    box.showModal()
    box.addEventListener('close', () => (doc.getElementById(opener.id) || opener).focus(), { once: true })
  }
  let verdict = $('[data-say]')?.textContent
  on('htmx:after:swap', e => {
    const { target, sourceElement } = e.detail.ctx, said = $('[data-say]')?.textContent
    if (target?.id === 'dialog') show(target, sourceElement)
    if (said !== verdict) $('#say').textContent = verdict = said
    times(); picked()
  })
  on('htmx:confirm', e => {
    const { ctx, issueRequest, dropRequest } = e.detail, from = ctx.sourceElement, box = $('#confirm')
    if (!ctx.confirm) return
    e.preventDefault()
    $('h2', box).textContent = ctx.confirm
    $('[value=ok]', box).textContent = from.dataset.ok || 'Yes'
    $('[value=no]', box).textContent = from.dataset.keep || 'Keep as it is'
    show(box, ctx.request.submitter || from)
    box.addEventListener('close', () => box.returnValue === 'ok' ? issueRequest() : dropRequest(), { once: true })
  })

  // As the `ago` tag says it.
  const times = () => $$('[data-ago]').forEach(t => {
    const s = (clock() + skew - Date.parse(t.dateTime)) / 1000, n = Math.floor(Math.abs(s))
    const [unit, word] = n < 60 ? [1, 's'] : n < 3600 ? [60, 'min'] : n < 172800 ? [3600, 'h'] : [86400, 'd']
    const a = `${Math.floor(n / unit)} ${word}`
    t.textContent = !n ? 'just now' : s < 0 ? `in ${a}` : `${a} ago`
  })
  setInterval(times, 15e3)

  let last
  const picked = () => {
    const n = checked().length, all = $$('[data-select]').length
    $$('[data-count]').forEach(c => c.textContent = n)
    $$('[data-all]').forEach(c => { c.checked = n && n === all; c.indeterminate = n && n < all })
    tick()
  }
  const select = (list, value) => { list.forEach(c => c.checked = value); picked() }

  // What a click on [data-<name>] does.
  const acts = {
    theme() {
      const was = root.dataset.theme, next = was === 'light' ? 'dark' : was ? '' : 'light'
      if (next) root.dataset.theme = next; else delete root.dataset.theme
      doc.cookie = `theme=${next};path=/;max-age=31536000;samesite=lax`
      $('#say').textContent = `Theme: ${next || 'as the system'}`
    },
    pause(b) { b.setAttribute('aria-pressed', paused = !paused); tick() },
    copy(b) {
      const value = b.dataset.copy || location.href, fail = () => toast('Copy by hand: ' + value, 1)
      navigator.clipboard ? navigator.clipboard.writeText(value).then(() => toast('Copied'), fail) : fail()
    },
    open(b) { show($(b.dataset.open), b) },
    close(b) { b.closest('dialog').close() },
    dismiss(b) { b.closest('.toast').remove() },
    clear() { select(checked(), false) },
    all(b) { select($$('[data-select]'), b.checked) },
    select(b, e) {
      const list = $$('[data-select]'), [from, to] = [list.indexOf(last), list.indexOf(b)].sort((x, y) => x - y)
      select(e.shiftKey && from >= 0 ? list.slice(from, to + 1) : [], b.checked)
      last = b
    },
  }
  on('click', e => {
    const b = e.target.closest('button, a, input')
    for (const name in b?.dataset) acts[name]?.(b, e)
  })

  // data-key names the key of a control; one switch turns all off (WCAG 2.1.4).
  const keys = $('#keys')
  let chord = 0
  if (keys) {
    keys.checked = localStorage.keys !== 'off'
    keys.onchange = () => localStorage.keys = keys.checked ? 'on' : 'off'
  }
  on('keydown', e => {
    wake()
    if (e.ctrlKey || e.metaKey || e.altKey || $('dialog[open]')) return
    if (e.key === 'Escape') return acts.clear()
    if (!keys?.checked || e.target.matches('input:not([type=checkbox]), select, textarea')) return
    const key = (clock() - chord < 1500 ? 'g ' : '') + e.key, hit = $(`[data-key="${CSS.escape(key)}"]`)
    chord = key === 'g' ? clock() : 0
    if (hit) {
      e.preventDefault()
      hit.matches('input') ? hit.focus() : hit.click()
    } else if (key === 'j' || key === 'k') {
      const names = $$('a.name')
      names[Math.max(0, names.indexOf(doc.activeElement) + (key === 'j' ? 1 : -1))]?.focus()
    } else if (key === 'x') $('tr:focus-within [data-select]')?.click()
  })

  times(); picked()
})()
