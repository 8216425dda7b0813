"""What surrounds a page, where its content stands, and which elements end a paragraph: the vocabulary of the extractor.

Elements say what they are by their tag, their role and their class and id names. `hints` reads the names word by word: `relatedPosts`,
`related-posts` and `related_posts` are the words related, posts. The words are English, since class names are, under pages of any
language. Names of documentation generators (Sphinx, DocBook, Doxygen, MkDocs, Javadoc, gtk-doc, MediaWiki, Hugo, the Apache and SQLite
manuals) and of what MathJax and KaTeX draw twice are known as a whole.
"""

from __future__ import annotations

import re
from functools import lru_cache

DROP, JUNK, META, COMMENT, BODY, MAIN, DOCS, HEADER, LOOSE, ARTICLE, NOTICE, MANUAL, WORDY = (1 << i for i in range(13))
"""What an element is: never text; surroundings; a line about the page (byline, date, tags, caption); readers' comments; the body of an
article; the main part of a page; a documentation generator's content; a header; hidden, or a form: often surroundings; the body of an
article, said by `itemprop=articleBody`; a notice laid over the page (cookies, consent); a name that only documentation generators write;
and that it is surroundings only by a word inside a longer name (generators make names of headings)."""
AROUND = JUNK | META | COMMENT | HEADER | LOOSE | NOTICE


def words_of(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SKIPPED_TAGS = words_of(
    "script style template select textarea svg iframe object canvas dialog -comment title head input meta link audio video button"
    " option datalist progress meter applet embed map area frame frameset noframes param source track"
)
JUNK_TAGS = {
    "nav": JUNK,
    "footer": JUNK,
    "aside": JUNK,
    "noscript": JUNK,
    "form": LOOSE,
    "figure": 0,
    "header": HEADER,
    "main": MAIN,
    "article": MAIN,
}
ROLES = {
    **dict.fromkeys(words_of("navigation banner contentinfo search complementary menu menubar toolbar dialog alertdialog tablist"), JUNK),
    "main": MAIN,
}
DROP_NAMES = words_of(
    "gutter rouge-gutter blob-num headerlink viewcode-link viewcode-back permalink anchor-link linenos linenodiv lineno"
    " line-numbers-rows copybtn skip-link edit-link mw-editsection katex-html MathJax_Preview MathJax MathJax_Display"
    " mwe-math-fallback-image-inline mwe-math-fallback-image-display eqno backlinktop sr-only visually-hidden screen-reader-text"
    " screen-reader-only hidden-print mw-jump-link assistive-text"
)
DOCS_NAMES = words_of(
    "rst-content docbook mw-parser-output mw-content-text theme-doc-markdown md-content__inner refentry docContent javadoc sect1"
    " sect2 refsect1 documentwrapper bodywrapper contents-treeview DisplayArea doxygen memdoc memitem mdbook gitbook-markdown"
)
MANUAL_NAMES = words_of(
    "sphinxsidebar sphinxsidebarwrapper navheader navfooter breadcrumbcontainer indexgroup nav-path navpath rst-footer-buttons"
    " wy-nav-side rst-versions nosearch toplang bottomlang catlinks printfooter mw-hidden-catlinks highlight-python highlight-default"
    " genindextable"
)
JUNK_NAMES = words_of(
    "topNav bottomNav subNav toc table-of-contents tableofcontents noprint directory-nav side-nav page-header path tabs nav"
    " navigation sidebar footer menu related navbar nav-panel breadcrumb breadcrumbs pagination cookie cookies share social"
    " search-form tagline navbox metadata ambox sistersitebox jp-relatedposts sharedaddy addtoany_share_save_container a2a_kit"
)
NOTICE_WORDS = words_of("cookie cookies consent gdpr dsgvo optin")
JUNK_WORDS = words_of(
    "nav navbar navigation navi menu submenu breadcrumb breadcrumbs footer sidebar sidebars rail related relateds recommended"
    " recommendation recommendations recirc recirculation share sharing shares sharebar sharethis addthis social socials sociable"
    " newsletter newsletters subscribe subscription advert adverts advertisement advertisements advertising ad ads adsense dfp gpt"
    " adslot adunit adbox promo promos promotion sponsor sponsored sponsors popup modal overlay lightbox paywall outbrain taboola"
    " pagination pager paging trending toolbar login signup signin register copyright disclaimer skip teasers upsell donate donation"
    " print readmore whatsapp facebook twitter linkedin pinterest nextprev prevnext crumbs masthead colophon offcanvas hamburger"
    " dropdown megamenu feedback survey cta widget portlet aside factbox callout alert appstores placeholder toast mostread mostviewed"
    " mostpopular popular latest ticker carousel slideshow rating ratings poll"
)
META_WORDS = words_of(
    "byline author authors dateline timestamp date datetime pubdate published tags taglist caption captions credit credits bio meta"
    " metadata postmeta category categories postinfo infoline views reading readtime eyebrow kicker avatar image img photo picture"
    " gallery imagewrap imginline utility toggle info infobox"
)
COMMENT_WORDS = words_of("comment comments commentlist disqus respond replies reply fyre livefyre guestbook")
CONTAINER = re.compile(r"^(?:hentry|post-\d+|type-|status-|format-|tag-|category-|has-|no-|with-|not-|is-|js-|elementor|et_pb|vc_|wpb_)")
LAYOUT_NAME = re.compile(
    r"sidebar[-_]?(?:and|with|included|wrap|content|layout|enabled|active|open|right|left|none|no)|(?:with|no|has|left|right|content|and|layout)[-_]*sidebar"
    r"|-(?:enabled|active|open|included|container-outer)$",
    re.I,
)
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
BODY_NAME = re.compile(
    r"^(?:(?:the|single|main|td|node|news|blog|c|o|m|js|field|name)[-_]*)*"
    r"(?:article|articles|entry|post|story|blog|art|news|text|content|page|body|single|detail|topic|wysiwyg)(?:[-_]*"
    r"(?:article|entry|post|story|body|content|contents|text|copy|bodytext|inner|main|full|fulltext|detail|bodycopy|paragraphs|formatted))+$"
    r"|^(?:articlebody|bodytext|fulltext|storytext|body-copy|bodycopy|wysiwyg|rte|richtext|rich-text|prose|copy|text|entry|field-name-body"
    r"|article|story|body-content|articletext|formatted-text|field-body)$",
    re.I,
)
MAIN_NAME = re.compile(
    r"^(?:main|content|contents|main[-_]?content|primary|content[-_]?main|page[-_]?content|site-content|post|hentry|story)$", re.I
)


CALLS = re.compile(
    r"^[\W_]*(?:read (?:more|also|next|the full)|related\b.{0,30}$|see also|more (?:from|on|about)|advert|continue reading"
    r"|share (?:this|on|via)"
    r"|follow us|sign up|subscribe|click here|tags?:|filed under|posted (?:in|by|on)|last updated|topics?:|categor(?:y|ies):"
    r"|photo(?:graph)?s?(?: by|:)|image(?: credit)?s?:|credits?:|leave a (?:comment|reply)|copyright|©|\(c\)|all rights reserved"
    r"|getty images"
    r"|lesen sie (?:auch|mehr)|mehr zum thema|weiterlesen|teilen|anzeige\b|foto:|bild:|quelle:|lire aussi|à lire|leggi anche|lee también"
    r"|leia também|читайте также|zobacz|czytaj|関連記事|相关阅读|相关文章)",
    re.I,
)
"""How short lines begin that call the reader away from an article, or say whose a picture is."""


@lru_cache(1 << 16)
def hints(names: str) -> int:
    """What the class and id names of an element (separated by spaces) say that it is: a sum of the constants above."""
    found = sure = 0
    for name in names.split():
        if name in DROP_NAMES:
            return DROP
        if name in JUNK_NAMES:
            sure |= JUNK
        elif name in MANUAL_NAMES:
            sure |= MANUAL if name.startswith(("highlight", "genindex")) else JUNK | MANUAL
        elif name in DOCS_NAMES:
            found |= DOCS | MANUAL
        elif MAIN_NAME.match(name):
            found |= MAIN | (BODY if BODY_NAME.match(name) else 0)
        elif not CONTAINER.match(name) and not LAYOUT_NAME.search(name):
            words = {w.lower() for w in WORD.findall(name.partition("--")[0])}
            junk = (
                (JUNK if words & JUNK_WORDS else 0)
                | (NOTICE if words & NOTICE_WORDS else 0)
                | (COMMENT if words & COMMENT_WORDS else 0)
                | (META if words & META_WORDS else 0)
                | (HEADER if "header" in words else 0)
            )
            if junk:
                found |= junk if name == "header" else junk | WORDY
            elif BODY_NAME.match(name):
                found |= BODY
    return (found | sure) & ~WORDY if sure & JUNK else found | sure


BLOCKS = words_of(
    "noscript p div section article main header footer nav aside form dl dt dd figure figcaption address fieldset legend details"
    " summary td th tr caption hr center body tbody thead tfoot hgroup"
)
HEADINGS = {f"h{n}": "#" * n + " " for n in range(1, 7)}
LAYOUT = "table, pre, h1, h2, h3, h4, h5, h6, form, ul, ol, dl, blockquote"
LAYOUT_WITH_HEADERS = "table, pre, h1, h2, h3, h4, h5, h6, form"
UNCLOSED = words_of(
    "p li dt dd td th tr tbody thead tfoot option optgroup colgroup br hr img input meta link col area base wbr source track embed"
)
NO_LANGUAGE = words_of("default notranslate none text txt plain plaintext literal example")
